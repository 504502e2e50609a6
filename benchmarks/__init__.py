"""Workloads, their twins, and what is measured on them."""
