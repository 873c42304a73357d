"""Runtime of jobs: code digests, layout of results, files, provenance, scripts."""
