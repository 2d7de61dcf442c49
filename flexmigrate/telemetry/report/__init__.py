"""Reports of finished migrations, as an HTML page or as JSON."""
