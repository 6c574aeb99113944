"""What runs beside a model: hooks, pictures of regions, and the count of multiply-adds. Needs mmengine."""
