"""The ground floor: errors, files and pages. The rooms above stand on it; it knows none of them."""
