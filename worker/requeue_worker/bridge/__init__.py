"""The JetStream bridge: what consumers of streams gave up becomes requeued messages or dead letters."""
