"""Tables and figures of runs' measurements, with their sampling errors."""
