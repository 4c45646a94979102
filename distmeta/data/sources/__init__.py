"""Sources of datasets: one file per origin of images, each with a function that writes a dataset."""
