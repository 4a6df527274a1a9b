package leadership

import (
	"fmt"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
)

// stopped is a leadership that we have ended ourselves.
type stopped struct {
	epoch     uint64
	successor string
}

// stop stops leading, for good. Where a standby is told that the Lease is left to it: its
// connection, which it closes once it has taken the Lease.
func (e *election) stop() (connection uint64, told bool) {
	t := e.tenure
	if e.tenure = nil; t == nil {
		return 0, false
	}
	e.stopped = &stopped{epoch: t.epoch}
	if t.armed == nil {
		return 0, false
	}
	e.stopped.successor = t.armed.identity
	for id, session := range e.peers.sessions {
		if session.number == t.armed.session && e.record.version != "" {
			e.effects = append(e.effects, effect{say: id, line: fmt.Sprintf("yours %d %s\n", t.epoch, e.record.version)})
			return id, true
		}
	}
	return 0, false
}

// release gives the record that gives the Lease back; nil where it was not ours when we stopped.
func (e *election) release(wall time.Time) *coordinationv1.Lease {
	if e.stopped == nil || e.seen == nil {
		return nil
	}
	return givenBack(e.seen, e.stopped.successor, wall)
}

// releaseAgain is the same for a record that has moved on meanwhile.
func (e *election) releaseAgain(found *coordinationv1.Lease, wall time.Time) *coordinationv1.Lease {
	r := readRecord(found)
	if e.stopped == nil || r.holder != e.config.Identity || r.epoch != e.stopped.epoch {
		return nil
	}
	successor := ""
	if r.standby != nil {
		successor = r.standby.identity
	}
	return givenBack(found, successor, wall)
}

// released: the Lease was given back, and the standbys are told.
func (e *election) released() {
	for _, id := range e.peers.closeAll() {
		e.effects = append(e.effects, effect{say: id, line: "bye\n"}, effect{close: id})
	}
}
