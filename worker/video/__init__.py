"""Everything that touches FFmpeg. No other package imports `av`; what goes in and out are our own values."""
