"""The durable queue: store, scheduler, settlement of attempts, bounces. Mail is ours from its commit on."""
