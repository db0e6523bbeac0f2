"""Training of the package's models on image data: data sets, the training loop, plots. `fastconv train` is its command line."""
