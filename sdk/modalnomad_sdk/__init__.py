"""What programs import as `modal`."""
