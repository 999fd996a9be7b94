"""Plan and graph become part models and the duplicated whole."""
