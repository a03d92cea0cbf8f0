"""The page that the driver serves: HTML, CSS and JavaScript, served as they are by `deploy/control/page_routes.py`."""
