// Command driver speaks to nats-requeue with the NATS library for Go. It takes commands as lines of JSON on standard
// input and answers each with one line; messages that it handles come as lines of their own.
//
//	{"id": 1, "op": "envelope", "envelope": {...}}                    -> {"id": 1, "bytes": "..."}
//	{"id": 2, "op": "request", "subject": ..., "headers": {...}, ...} -> {"id": 2, "reply": {...}} or {"id": 2, "error": {...}}
//	{"id": 3, "op": "handle", "subject": ..., "answers": [...]}       -> {"id": 3}, then {"event": ...} for each message
//
// The drivers for Node and Python speak the same, so that one test says what holds for all of them.
package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"sync"

	"github.com/nats-io/nats.go"
)

type command struct {
	ID        int                 `json:"id"`
	Op        string              `json:"op"`
	Subject   string              `json:"subject"`
	Payload   []byte              `json:"payload"`
	Headers   map[string][]string `json:"headers"`
	TimeoutMs int                 `json:"timeout_ms"`
	OneByOne  bool                `json:"one_by_one"`
	Envelope  envelope            `json:"envelope"`
	Answers   []answer            `json:"answers"`
}

type failure struct {
	Kind string `json:"kind"` // "no responders", "timeout" or "other"
	Name string `json:"name"` // as a program tells it apart
	Text string `json:"text"`
}

type message struct {
	Subject string              `json:"subject"`
	Payload []byte              `json:"payload"`
	Headers map[string][]string `json:"headers"`
}

type line struct {
	ID      int      `json:"id,omitempty"`
	Event   string   `json:"event,omitempty"`
	Bytes   []byte   `json:"bytes,omitempty"`
	Reply   *message `json:"reply,omitempty"`
	Message *message `json:"message,omitempty"`
	Error   *failure `json:"error,omitempty"`
}

var output sync.Mutex

func say(what line) {
	text, err := json.Marshal(what)
	if err != nil {
		panic(err)
	}
	output.Lock()
	defer output.Unlock()
	fmt.Println(string(text))
}

func main() {
	server := os.Args[1]
	shared, err := nats.Connect(server)
	if err != nil {
		panic(err)
	}
	defer shared.Close()
	oneByOne, err := nats.Connect(server, nats.UseOldRequestStyle())
	if err != nil {
		panic(err)
	}
	defer oneByOne.Close()

	lines := bufio.NewScanner(os.Stdin)
	lines.Buffer(nil, 8<<20)
	for lines.Scan() {
		var command command
		if err := json.Unmarshal(lines.Bytes(), &command); err != nil {
			panic(err)
		}
		switch command.Op {
		case "envelope":
			say(line{ID: command.ID, Bytes: command.Envelope.build()})
		case "request":
			nc := shared
			if command.OneByOne {
				nc = oneByOne
			}
			go request(nc, command)
		case "handle":
			handle(shared, command)
		default:
			panic("unknown op " + command.Op)
		}
	}
}

func toMessage(msg *nats.Msg) *message {
	return &message{Subject: msg.Subject, Payload: msg.Data, Headers: msg.Header}
}

func toFailure(err error) *failure {
	known := map[error][2]string{
		nats.ErrNoResponders:        {"no responders", "ErrNoResponders"},
		nats.ErrTimeout:             {"timeout", "ErrTimeout"},
		nats.ErrMsgAlreadyAckd:      {"other", "ErrMsgAlreadyAckd"},
		nats.ErrMsgNotBound:         {"other", "ErrMsgNotBound"},
		nats.ErrNotJSMessage:        {"other", "ErrNotJSMessage"},
		nats.ErrInvalidJSAck:        {"other", "ErrInvalidJSAck"},
		nats.ErrBadHeaderMsg:        {"other", "ErrBadHeaderMsg"},
		nats.ErrMaxPayload:          {"other", "ErrMaxPayload"},
		nats.ErrHeadersNotSupported: {"other", "ErrHeadersNotSupported"},
	}
	for sentinel, names := range known {
		if errors.Is(err, sentinel) {
			return &failure{Kind: names[0], Name: names[1], Text: err.Error()}
		}
	}
	return &failure{Kind: "other", Name: fmt.Sprintf("%T", err), Text: err.Error()}
}
