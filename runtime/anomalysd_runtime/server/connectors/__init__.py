"""Other ways in and out than HTTP requests: folders, MQTT, webhooks."""
