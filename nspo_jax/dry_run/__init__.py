"""The plan of a run's memory and work, before anything is loaded or paid for."""
