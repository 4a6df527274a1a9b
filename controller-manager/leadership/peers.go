package leadership

import "time"

const (
	// Standbys of one leader.
	mostStandbys = 16
	// Questions that may be answered late.
	remembered = 16
	// A standby that has been silent for this long is no longer the one that may take over.
	doubt = 500 * time.Millisecond
	// Promises in a row before a standby is told of in the Lease.
	steady = 3
	// After a standby fell silent, none is told of for this long.
	calm = time.Second
)

type question struct {
	number uint64
	at     time.Time
}

type session struct {
	identity string
	number   uint64
	asked    []question
	grants   int
	synced   bool
}

// peers is the leader's side of the connections.
type peers struct {
	sessions  map[uint64]*session
	promised  map[uint64]time.Time // by session number: when the question was sent
	nextAsk   time.Time
	asks      uint64
	calmUntil time.Time
}

func newPeers() peers {
	return peers{sessions: map[uint64]*session{}, promised: map[uint64]time.Time{}}
}

func (p *peers) open(id uint64, identity string, number uint64) bool {
	if _, known := p.promised[number]; known || len(p.sessions) >= mostStandbys {
		return false
	}
	for _, other := range p.sessions {
		if other.number == number {
			return false
		}
	}
	p.sessions[id] = &session{identity: identity, number: number}
	p.nextAsk = time.Time{}
	return true
}

func (p *peers) closeAll() []uint64 {
	ids := make([]uint64, 0, len(p.sessions))
	for id := range p.sessions {
		ids = append(ids, id)
	}
	*p = peers{sessions: map[uint64]*session{}, promised: map[uint64]time.Time{}, asks: p.asks}
	return ids
}

// ask gives the number of the question to be sent now to all, if it is time.
func (p *peers) ask(now time.Time) (uint64, bool) {
	if len(p.sessions) == 0 || now.Before(p.nextAsk) {
		return 0, false
	}
	p.nextAsk = now.Add(AskEvery)
	p.asks++
	for _, s := range p.sessions {
		s.asked = append(s.asked, question{p.asks, now})
		if len(s.asked) > remembered {
			s.asked = s.asked[1:]
		}
	}
	return p.asks, true
}

// granted takes a promise: it holds from when the question was sent.
func (p *peers) granted(id, number uint64, synced bool) {
	s, found := p.sessions[id]
	if !found {
		return
	}
	s.synced = synced
	for len(s.asked) > 0 && s.asked[0].number <= number {
		asked := s.asked[0]
		s.asked = s.asked[1:]
		if asked.number == number {
			s.grants++
			p.promised[s.number] = asked.at
		}
	}
}

// prune forgets promises of sessions that are neither open nor in armed.
func (p *peers) prune(armed []uint64) {
	keep := map[uint64]bool{}
	for _, s := range p.sessions {
		keep[s.number] = true
	}
	for _, number := range armed {
		keep[number] = true
	}
	for number := range p.promised {
		if !keep[number] {
			delete(p.promised, number)
		}
	}
}

// choice is who may take over when we fall silent: the one of now while it answers, else a synced
// one, else any.
func (p *peers) choice(armed *standbyRecord, now time.Time) *standbyRecord {
	var current, best *session
	calmed := !now.Before(p.calmUntil)
	for _, s := range p.sessions {
		at, known := p.promised[s.number]
		if !known || now.Sub(at) >= doubt {
			continue
		}
		if armed != nil && s.number == armed.session {
			current = s
		}
		better := best == nil || s.synced && !best.synced || s.synced == best.synced && s.number > best.number
		if calmed && s.grants >= steady && better {
			best = s
		}
	}
	if armed != nil && current == nil {
		p.calmUntil = now.Add(calm)
		return nil
	}
	chosen := best
	if current != nil && (best == nil || current.synced || !best.synced) {
		chosen = current
	}
	if chosen == nil {
		return nil
	}
	return &standbyRecord{chosen.identity, chosen.number, chosen.synced}
}

func (p *peers) wake(armed []uint64) (at time.Time) {
	if len(p.sessions) > 0 {
		at = p.nextAsk
	}
	for _, number := range armed {
		if promised, known := p.promised[number]; known {
			at = earlier(at, promised.Add(doubt))
		}
	}
	return at
}
