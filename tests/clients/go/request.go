package main

import (
	"time"

	"github.com/nats-io/nats.go"
)

// request uses the library's own request: Request where there are no headers, as most programs do, else RequestMsg.
func request(nc *nats.Conn, command command) {
	timeout := time.Duration(command.TimeoutMs) * time.Millisecond
	var reply *nats.Msg
	var err error
	if command.Headers == nil {
		reply, err = nc.Request(command.Subject, command.Payload, timeout)
	} else {
		msg := nats.NewMsg(command.Subject)
		msg.Data = command.Payload
		for name, values := range command.Headers {
			for _, value := range values {
				msg.Header.Add(name, value)
			}
		}
		reply, err = nc.RequestMsg(msg, timeout)
	}
	if err != nil {
		say(line{ID: command.ID, Error: toFailure(err)})
		return
	}
	say(line{ID: command.ID, Reply: toMessage(reply)})
}
