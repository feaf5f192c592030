"""What runs leave on disk, and the yardsticks that they are held against."""
