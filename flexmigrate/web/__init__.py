"""The HTTP server: metrics for Prometheus, and a page that shows migrations."""
