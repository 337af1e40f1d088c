"""What the tests of exports share."""

WINDOW = 32
