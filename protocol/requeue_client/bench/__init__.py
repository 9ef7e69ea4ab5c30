"""`requeue bench`: what a worker does on this machine, and JetStream beside it.

    command.py     the command line: which scenarios, on what, as table or JSON
    target.py      the parts under load: own nats-server and worker in a temporary directory, or a running server
    ingest.py, replay.py, both.py, ack.py, lateness.py, headofline.py, startup.py, growth.py
                   one scenario each: set up, load, measure, Results
    jetstream.py, schedules.py, beanstalkd.py
                   the peers, each with its ingest and replay
    publisher.py, responder.py
                   load: a window of published messages; answers to what is delivered
    messages.py, wire.py
                   prebuilt NATS protocol lines; a bare connection that carries them
    usage.py, disk.py, figures.py, report.py
                   CPU and memory of processes; fsyncs and files; percentiles and results; output

The load shares the machine with what it measures, so it has to be cheap: a client library costs 10 to 20 µs a
message. Here a message is one formatted byte string and an ack one match of a regular expression, in batches
as they are read: about 3 µs of CPU per published message and 4 µs per answered delivery (`generator_cpu_us_per_msg`
in every result says what it really was). In return it speaks plain NATS only: no TLS, no reconnect, user and
password in the URL.
"""
