"""Tables and figures of what runs measured, with their sampling errors."""
