package main

import (
	flatbuffers "github.com/google/flatbuffers/go"

	"requeue-client-proofs/flatbuf"
)

type envelope struct {
	Subject string `json:"subject"`
	Payload []byte `json:"payload"`
	Retries uint64 `json:"retries"`
	TTL     uint64 `json:"ttl_ns"`
	Delay   uint64 `json:"delay_ns"`
	Backoff int8   `json:"backoff"`
	Queue   string `json:"queue"`
}

// build makes the bytes as a Go program does: with what flatc generates from the schema.
func (e envelope) build() []byte {
	builder := flatbuffers.NewBuilder(0)
	var queue flatbuffers.UOffsetT
	if e.Queue != "" {
		queue = builder.CreateString(e.Queue)
	}
	subject := builder.CreateString(e.Subject)
	payload := builder.CreateByteVector(e.Payload)
	flatbuf.RequeueMessageStart(builder)
	flatbuf.RequeueMessageAddRetries(builder, e.Retries)
	flatbuf.RequeueMessageAddTtl(builder, e.TTL)
	flatbuf.RequeueMessageAddDelay(builder, e.Delay)
	flatbuf.RequeueMessageAddBackoffStrategy(builder, flatbuf.BackoffStrategy(e.Backoff))
	if queue != 0 {
		flatbuf.RequeueMessageAddQueueName(builder, queue)
	}
	flatbuf.RequeueMessageAddOriginalSubject(builder, subject)
	flatbuf.RequeueMessageAddOriginalPayload(builder, payload)
	builder.Finish(flatbuf.RequeueMessageEnd(builder))
	return builder.FinishedBytes()
}
