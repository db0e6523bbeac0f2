"""Training of the package's models on images: data sets, the loop, plots. `fastconv train` is its command line."""
