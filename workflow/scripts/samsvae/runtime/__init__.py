"""What carries a job: code digests, the layout of results, scripts run by hand."""
