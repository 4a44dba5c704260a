"""Statistics and series: arrays in, arrays out."""
