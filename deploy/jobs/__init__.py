"""A run as a Ray job: submitted to a cluster from anywhere, followed, asked and stopped through its dashboard."""
