"""The link to a liquidity provider: requests out, reports in, and a simulated provider to try it with."""
