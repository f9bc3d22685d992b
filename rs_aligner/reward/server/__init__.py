"""The judge as a service, from config to exit status: `serve`."""
