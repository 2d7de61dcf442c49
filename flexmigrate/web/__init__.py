"""What is told over HTTP to those who look on: metrics for Prometheus, and a page."""
