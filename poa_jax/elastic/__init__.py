"""What 'elastic' means: widths, slicing rules, search spaces. Knows no architecture by name."""
