"""HTTP: orders, copy trading, figures and the desk's page, for services and people."""
