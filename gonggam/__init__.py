"""The ground floor: errors, files, pages, progress. The rooms above stand on it; it knows none of them."""
