"""What it takes to run Baton on a cluster; see ``deploy.lws``."""
