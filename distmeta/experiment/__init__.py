"""The experiment that is run: settings, experiments, job files, protocol cards."""
