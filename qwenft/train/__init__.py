"""From a prepared data set to an adapter."""
