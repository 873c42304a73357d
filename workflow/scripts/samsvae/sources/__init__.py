"""Sources of screens: readers of files, downloads and simulators."""
