"""The ladder: lessons as data, trained one after the other, shown and reported."""
