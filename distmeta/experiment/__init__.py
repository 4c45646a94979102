"""What is run: settings, experiments, job files, protocol cards."""
