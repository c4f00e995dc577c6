"""What a run would need, before anything is loaded or paid for."""
