package leadership

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
)

const (
	// AskEvery is how often a leader asks its standbys.
	AskEvery = 200 * time.Millisecond
	// Grant is how long a leader relies on a promise, from when it asked.
	Grant = 800 * time.Millisecond
	// TakeoverDelay is how long a standby keeps a promise, from when it was asked.
	TakeoverDelay = time.Second

	// One whom a released Lease is not meant for waits this long.
	courtesy = time.Second
	// Looks that evidence of the leader's end causes are this far apart.
	soon = 50 * time.Millisecond
	// Looks that a change of the standbys causes are this far apart.
	rearm = 150 * time.Millisecond
)

// Cause is why a leadership began.
type Cause string

// The causes.
const (
	Vacant   Cause = "vacant"
	Handover Cause = "handover"
	Death    Cause = "death"
	Silence  Cause = "silence"
	Expired  Cause = "expired"
	Restart  Cause = "restart"
)

// Takeover is how a leadership began. Took is zero where there was no old leader.
type Takeover struct {
	Epoch uint64
	Cause Cause
	Took  time.Duration
}

// State is what is known about the leader.
type State struct {
	// Leader: we lead and may act until Fence.
	Leader bool
	// Holds: the Lease is ours. Without Leader, the right to act is suspended.
	Holds  bool
	Epoch  uint64
	Holder string
	Fence  time.Time
	// Renewed: when the request began that last renewed our leadership.
	Renewed       time.Time
	StandbySynced bool
}

type tenure struct {
	epoch      uint64
	renewed    time.Time
	from       time.Time
	suspended  bool
	armed      *standbyRecord
	maybeArmed []uint64
}

type pending struct {
	acquires bool
	cause    Cause
	since    time.Time
	settling bool
	armed    *standbyRecord
}

// effect is what the surroundings have to do: exactly one of its sorts.
type effect struct {
	connect *target
	leave   uint64 // session
	answer  uint64 // session
	say     uint64 // connection
	close   uint64 // connection
	line    string
}

// election is a candidate's decisions, with clocks and answers handed in.
type election struct {
	config   Config
	peer     *peer
	seen     *coordinationv1.Lease
	record   record
	read     bool
	changed  time.Time
	tenure   *tenure
	pending  *pending
	nextLook time.Time
	hurryAt  time.Time
	again    bool     // what was heard may be newer than the look that is under way
	heardOf  string   // the version that the leader has written, until the next look
	stopped  *stopped // our leadership, once we have stopped
	standby  standby
	peers    peers
	synced   bool
	sessions uint64
	effects  []effect
	takeover *Takeover
	next     *coordinationv1.Lease // what the last look has led to
}

func newElection(config Config, at *peer, seed uint64, now time.Time) *election {
	return &election{config: config, peer: at, sessions: seed, peers: newPeers(), nextLook: now, hurryAt: now}
}

// looked takes over what the apiserver holds, and gives what to write, if anything.
func (e *election) looked(found *coordinationv1.Lease, now, wall time.Time) *coordinationv1.Lease {
	r := record{}
	if found != nil {
		r = readRecord(found)
	}
	if !e.read || e.seen == nil || r.version != e.record.version {
		e.changed = now
	}
	e.read, e.record, e.hurryAt = true, r, now.Add(soon)
	if session, left := e.standby.check(&r); left {
		e.effects = append(e.effects, effect{leave: session})
	}
	goesOn := r.holder == e.config.Identity && e.tenure != nil && e.tenure.epoch == r.epoch
	if !goesOn {
		e.stepDown()
	}
	e.seen = found
	if found == nil {
		// Somebody may lead by the record that was deleted.
		return e.acquire(Vacant, time.Time{}, true, wall)
	}
	if goesOn {
		return e.renew(now, wall)
	}
	if cause, since, may := e.cause(now); may {
		return e.acquire(cause, since, r.settling, wall)
	}
	// It has led to nothing: the leader lives, or another one leads.
	if e.standby.known(now) != nil {
		if session, left := e.standby.forget(); left {
			e.effects = append(e.effects, effect{leave: session})
		}
	}
	next := func() uint64 { e.sessions++; return e.sessions }
	if to := e.standby.connect(&e.record, e.config.Identity, now, next); to != nil {
		e.effects = append(e.effects, effect{connect: to})
	}
	pause := e.config.RetryPeriod
	if !e.standby.attached() {
		pause /= 2
	}
	e.nextLook = now.Add(pause)
	if e.again || e.heardOf != "" && e.heardOf != e.record.version {
		e.hurry(now)
	}
	e.again, e.heardOf = false, ""
	return nil
}

// cause says why we may take the Lease that was just seen, if we may.
func (e *election) cause(now time.Time) (Cause, time.Time, bool) {
	r, unchanged := &e.record, now.Sub(e.changed)
	expired := unchanged >= max(r.duration, e.config.LeaseDuration)
	if r.holder == "" {
		meant := r.successor == "" || r.successor == e.config.Identity
		if r.released && (meant || unchanged >= courtesy) {
			return Handover, e.changed, true
		}
		return Expired, e.changed, expired
	}
	// The port is ours now, so whoever listened there before is dead.
	if r.holder == e.config.Identity && r.peer != nil && e.peer != nil && r.peer.address == e.peer.address {
		return Restart, time.Time{}, true
	}
	if known := e.standby.known(now); known != nil && known.leader == r.holder && known.epoch == r.epoch {
		switch known.sign {
		case signDead:
			return Death, known.since, true
		case signYielded:
			return Handover, known.since, true
		case signSilent:
		}
		if r.standby != nil && r.standby.session == known.session {
			return Silence, known.since, true
		}
	}
	return Expired, e.changed, expired
}

func (e *election) acquire(cause Cause, since time.Time, settling bool, wall time.Time) *coordinationv1.Lease {
	e.pending = &pending{acquires: true, cause: cause, since: since, settling: settling}
	return e.claimed(e.seen, claim{settling: settling}, wall)
}

// renewal is what needs no look before it: a renewal of the record as it was last written, and
// taking the Lease that a leader has left to us as it was last seen. Nil where a look is needed.
func (e *election) renewal(now, wall time.Time) *coordinationv1.Lease {
	if e.tenure == nil && e.stopped == nil && e.seen != nil {
		if since, ours := e.standby.leftToUs(&e.record); ours {
			return e.acquire(Handover, since, e.record.settling, wall)
		}
	}
	if e.tenure == nil || e.tenure.suspended || e.seen == nil {
		return nil
	}
	return e.renew(now, wall)
}

func (e *election) renew(now, wall time.Time) *coordinationv1.Lease {
	t := e.tenure
	armed := e.peers.choice(t.armed, now)
	if armed != nil && !slices.Contains(t.maybeArmed, armed.session) {
		// It may be there from now on, whatever we hear of it.
		t.maybeArmed = append(t.maybeArmed, armed.session)
	}
	e.pending = &pending{settling: now.Before(t.from), armed: armed}
	return e.claimed(e.seen, claim{t.epoch, armed, e.pending.settling}, wall)
}

// wrote: the write landed; it was begun at started.
func (e *election) wrote(lease *coordinationv1.Lease, started, now time.Time) {
	p := e.pending
	if e.pending = nil; p == nil {
		return
	}
	e.record, e.seen, e.changed = readRecord(lease), lease, now
	e.nextLook, e.hurryAt = started.Add(e.config.RetryPeriod), now.Add(rearm)
	var maybe []uint64
	if p.armed != nil {
		maybe = []uint64{p.armed.session}
	}
	e.peers.prune(maybe)
	if !p.acquires {
		if t := e.tenure; t != nil {
			t.renewed, t.suspended, t.armed, t.maybeArmed = started, false, p.armed, maybe
			for id := range e.peers.sessions {
				e.effects = append(e.effects, effect{say: id, line: "wrote " + e.record.version + "\n"})
			}
		}
		return
	}
	for _, session := range e.standby.reset() {
		e.effects = append(e.effects, effect{leave: session})
	}
	var settle, took time.Duration
	if p.settling {
		// Longer than anybody may act by a record that nobody here has seen.
		settle = e.config.RenewDeadline + e.config.RenewDeadline/8
	}
	if !p.since.IsZero() {
		took = now.Sub(p.since) + settle
	}
	e.takeover = &Takeover{e.record.epoch, p.cause, took}
	e.tenure = &tenure{epoch: e.record.epoch, renewed: started, from: now.Add(settle), maybeArmed: maybe}
}

// failed: the look or the write failed. With conflict the record is another than the one seen, and
// the write has not landed.
func (e *election) failed(conflict bool, now time.Time) {
	e.pending = nil
	e.standby.doubt()
	if !conflict {
		e.nextLook = now.Add(e.config.RetryPeriod / 4)
		e.hurryAt = e.nextLook
		return
	}
	// Whoever changed it may lead by now.
	if e.tenure != nil {
		e.tenure.suspended = true
	}
	e.nextLook = now
}

func (e *election) stepDown() {
	if e.tenure == nil {
		return
	}
	e.tenure = nil
	for _, id := range e.peers.closeAll() {
		e.effects = append(e.effects, effect{say: id, line: "no\n"}, effect{close: id})
	}
}

// heard: the leader spoke by the connection of this session.
func (e *election) heard(session uint64, line string, now time.Time) {
	words := strings.Fields(line)
	switch {
	case len(words) == 3 && words[0] == "ask":
		epoch, err := strconv.ParseUint(words[1], 10, 64)
		if err == nil && e.standby.asked(session, epoch, now) {
			synced := 0
			if e.synced {
				synced = 1
			}
			e.effects = append(e.effects, effect{answer: session, line: fmt.Sprintf("grant %s %d\n", words[2], synced)})
			return
		}
	case len(words) == 2 && words[0] == "wrote":
		if e.standby.hears(session) && e.record.version != words[1] {
			e.heardOf = words[1]
			e.hurry(now)
		}
		return
	case len(words) == 3 && words[0] == "yours":
		epoch, err := strconv.ParseUint(words[1], 10, 64)
		if err == nil && e.standby.yielded(session, epoch, words[2], now) {
			e.again, e.nextLook = true, now
			return
		}
	case len(words) == 1 && words[0] == "bye":
		e.disconnected(session, endReleased, now)
	case len(words) == 1 && words[0] == "no":
		e.disconnected(session, endTold, now)
	default:
		e.disconnected(session, endBroken, now)
	}
	e.effects = append(e.effects, effect{leave: session})
}

func (e *election) disconnected(session uint64, how end, now time.Time) {
	if e.standby.ended(session, how, now) {
		e.again = true
		e.hurry(now)
	}
}

// told: a standby spoke by this connection.
func (e *election) told(id uint64, line string) {
	words := strings.Fields(line)
	switch {
	case len(words) == 3 && words[0] == "grant":
		if number, err := strconv.ParseUint(words[1], 10, 64); err == nil {
			e.peers.granted(id, number, words[2] == "1")
		}
	case len(words) == 4 && words[0] == "hello" && e.tenure != nil && e.peer != nil && words[1] == e.peer.key:
		if session, err := strconv.ParseUint(words[3], 16, 64); err == nil && e.peers.open(id, words[2], session) {
			return
		}
		fallthrough
	default:
		if _, open := e.peers.sessions[id]; !open {
			e.effects = append(e.effects, effect{say: id, line: "no\n"}, effect{close: id})
		}
	}
}

func (e *election) gone(id uint64) { delete(e.peers.sessions, id) }

// passed: time has passed.
func (e *election) passed(now time.Time) {
	if session, left := e.standby.tick(now); left {
		e.effects = append(e.effects, effect{leave: session})
	}
	if e.standby.known(now) != nil {
		e.hurry(now)
	}
	if e.tenure == nil {
		return
	}
	if number, due := e.peers.ask(now); due {
		line := fmt.Sprintf("ask %d %d\n", e.tenure.epoch, number)
		for id := range e.peers.sessions {
			e.effects = append(e.effects, effect{say: id, line: line})
		}
	}
	if e.pending != nil {
		return
	}
	choice, armed := e.peers.choice(e.tenure.armed, now), e.tenure.armed
	// Whoever takes over need not wait any more once the Lease says so.
	settled := e.record.settling && !now.Before(e.tenure.from)
	if settled || (choice == nil) != (armed == nil) || choice != nil && *choice != *armed {
		e.hurry(now)
	}
}

func (e *election) hurry(now time.Time) {
	at := now
	if e.hurryAt.After(at) {
		at = e.hurryAt
	}
	e.nextLook = earlier(e.nextLook, at)
}

// wake is when passed has something to do though nothing happens.
func (e *election) wake(now time.Time) time.Time {
	at := now.Add(e.config.RetryPeriod)
	candidates := []time.Time{e.standby.wake()}
	if t := e.tenure; t != nil {
		turn := e.fence()
		if now.Before(t.from) {
			turn = t.from
		}
		candidates = append(candidates, e.peers.wake(t.maybeArmed), turn)
	}
	for _, candidate := range candidates {
		if candidate.After(now) {
			at = earlier(at, candidate)
		}
	}
	return at
}

// fence: past this nobody acts by our leadership, whatever comes; zero if nobody does now.
func (e *election) fence() time.Time {
	t := e.tenure
	if t == nil || t.suspended {
		return time.Time{}
	}
	fence := t.renewed.Add(e.config.RenewDeadline)
	for _, number := range t.maybeArmed {
		promised, known := e.peers.promised[number]
		if !known {
			return time.Time{}
		}
		fence = earlier(fence, promised.Add(Grant))
	}
	return fence
}

func (e *election) state(now time.Time) State {
	s := State{Holds: e.tenure != nil, Epoch: e.record.epoch, Holder: e.record.holder}
	armed := e.record.standby
	if t := e.tenure; t != nil {
		s.Epoch, armed, s.Renewed = t.epoch, t.armed, t.renewed
		if fence := e.fence(); now.Before(fence) && !now.Before(t.from) {
			s.Leader, s.Fence = true, fence
		}
	}
	s.StandbySynced = armed != nil && armed.synced
	return s
}
