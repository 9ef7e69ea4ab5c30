package main

import (
	"time"

	"github.com/nats-io/nats.go"
)

// answer is one way to settle a message: a verb of the library, or bytes (and headers) through its plain respond.
type answer struct {
	Verb    string            `json:"verb"` // ack, ack sync, nak, nak delay, working, term, respond
	DelayMs int               `json:"delay_ms"`
	Payload []byte            `json:"payload"`
	Headers map[string]string `json:"headers"`
}

// handle settles the first message with the first answer, and so on; the last one stands for all that follow.
func handle(nc *nats.Conn, command command) {
	answers := command.Answers
	_, err := nc.Subscribe(command.Subject, func(msg *nats.Msg) {
		next := answers[0]
		if len(answers) > 1 {
			answers = answers[1:]
		}
		told := line{Event: "message", Message: toMessage(msg)}
		if err := next.give(msg); err != nil {
			told.Error = toFailure(err)
		}
		say(told)
	})
	if err == nil {
		err = nc.Flush()
	}
	if err != nil {
		panic(err)
	}
	say(line{ID: command.ID})
}

func (a answer) give(msg *nats.Msg) error {
	switch a.Verb {
	case "ack":
		return msg.Ack()
	case "ack sync":
		return msg.AckSync(nats.AckWait(time.Duration(a.DelayMs) * time.Millisecond))
	case "nak":
		return msg.Nak()
	case "nak delay":
		return msg.NakWithDelay(time.Duration(a.DelayMs) * time.Millisecond)
	case "working":
		return msg.InProgress()
	case "term":
		return msg.Term()
	case "respond":
		if a.Headers == nil {
			return msg.Respond(a.Payload)
		}
		reply := nats.NewMsg("")
		reply.Data = a.Payload
		for name, value := range a.Headers {
			reply.Header.Set(name, value)
		}
		return msg.RespondMsg(reply)
	}
	panic("unknown verb " + a.Verb)
}
