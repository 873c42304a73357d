"""The report: one HTML file that tells what an experiment found and holds all that it shows."""
