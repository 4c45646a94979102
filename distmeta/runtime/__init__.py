"""How a run is computed: the driver, workers, the parameter server, the backends."""
