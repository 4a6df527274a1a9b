package leadership

import "time"

const (
	// After a connection failed the next is tried this much later.
	reconnect = 500 * time.Millisecond
	// A leader that takes a connection but does not ask for this long is left.
	patience = 3 * time.Second
)

// end is how a connection to the leader ended.
type end int

const (
	// endClosed: the leader's kernel closed it. Only a process that ended leaves it to the kernel.
	endClosed end = iota
	// endTold: the leader said that it ends, or we ended it.
	endTold
	// endReleased: the Lease was given back.
	endReleased
	// endBroken is all else.
	endBroken
)

type target struct {
	peer    peer
	session uint64
}

type link struct {
	target   target
	leader   string
	epoch    uint64
	began    time.Time
	promised time.Time // when the last question that we answered was read; zero if never
}

// sign is what tells of a leader's end.
type sign int

const (
	// signSilent: it has said nothing for too long.
	signSilent sign = iota
	// signDead: its connection ended as only that of a dead process does.
	signDead
	// signYielded: it has said that it has stopped.
	signYielded
)

// evidence is what a standby knows of the leader's end.
type evidence struct {
	leader  string
	epoch   uint64
	session uint64
	sign    sign
	version string // of the Lease as a leader that has yielded left it; empty once that is not so
	since   time.Time
	ready   time.Time
}

// standby is the standby's side of the connection.
type standby struct {
	link     *link
	evidence *evidence
	retryAt  time.Time
}

func (s *standby) connect(r *record, identity string, now time.Time, session func() uint64) *target {
	if r.holder == "" || r.holder == identity || r.peer == nil {
		return nil
	}
	if s.link != nil || s.evidence != nil || now.Before(s.retryAt) {
		return nil
	}
	s.link = &link{target: target{*r.peer, session()}, leader: r.holder, epoch: r.epoch, began: now}
	return &s.link.target
}

// asked says whether to promise; if not, the connection is to be left.
func (s *standby) asked(session, epoch uint64, now time.Time) bool {
	if s.link == nil || s.link.target.session != session {
		return false
	}
	if s.link.epoch != epoch {
		s.link = nil
		return false
	}
	s.link.promised = now
	return true
}

// ended says whether the Lease is worth a look at once.
func (s *standby) ended(session uint64, how end, now time.Time) bool {
	if s.link == nil || s.link.target.session != session {
		return false
	}
	gone := s.link
	s.link, s.retryAt = nil, now.Add(reconnect)
	if gone.promised.IsZero() {
		return false
	}
	switch how {
	case endReleased:
		return true
	case endClosed:
		s.note(gone, signDead, now)
		return true
	case endBroken:
		s.note(gone, signSilent, gone.silentAt())
	case endTold:
	}
	return false
}

func (s *standby) note(l *link, sign sign, ready time.Time) {
	s.evidence = &evidence{l.leader, l.epoch, l.target.session, sign, "", l.promised, ready}
}

// yielded: the leader has stopped for us; false where it is not the one of this session.
func (s *standby) yielded(session, epoch uint64, version string, now time.Time) bool {
	if !s.hears(session) || s.link.epoch != epoch || s.link.promised.IsZero() {
		return false
	}
	gone := s.link
	s.link, s.retryAt = nil, now.Add(reconnect)
	s.evidence = &evidence{gone.leader, epoch, session, signYielded, version, now, now}
	return true
}

// hears says whether this is the session of the leader.
func (s *standby) hears(session uint64) bool {
	return s.link != nil && s.link.target.session == session
}

// leftToUs gives since when the Lease, as it is in r, is left to us.
func (s *standby) leftToUs(r *record) (time.Time, bool) {
	known := s.evidence
	if known == nil || known.sign != signYielded || known.version == "" {
		return time.Time{}, false
	}
	return known.since, r.version == known.version && r.holder == known.leader && r.epoch == known.epoch
}

// doubt: the Lease is not as the leader has left it, so that it has to be looked at.
func (s *standby) doubt() {
	if s.evidence != nil {
		s.evidence.version = ""
	}
}

// forget forgets what is known of the leader's end, and gives the session that is to be left: a
// leader that has yielded waits for that.
func (s *standby) forget() (uint64, bool) {
	known := s.evidence
	s.evidence = nil
	if known == nil || known.sign != signYielded {
		return 0, false
	}
	return known.session, true
}

func (l *link) silentAt() time.Time {
	if l.promised.IsZero() {
		return l.began.Add(patience)
	}
	return l.promised.Add(TakeoverDelay)
}

// tick gives the session that is to be left since the leader is silent.
func (s *standby) tick(now time.Time) (uint64, bool) {
	if s.link == nil || now.Before(s.link.silentAt()) {
		return 0, false
	}
	gone := s.link
	s.link, s.retryAt = nil, now.Add(reconnect)
	if !gone.promised.IsZero() {
		s.note(gone, signSilent, gone.silentAt())
	}
	return gone.target.session, true
}

// known gives what is known of the leader's end, once something may follow from it.
func (s *standby) known(now time.Time) *evidence {
	if s.evidence == nil || now.Before(s.evidence.ready) {
		return nil
	}
	return s.evidence
}

// reset forgets all, and gives the sessions that are to be left.
func (s *standby) reset() []uint64 {
	var left []uint64
	if session, yielded := s.forget(); yielded {
		left = append(left, session)
	}
	if s.link != nil {
		left = append(left, s.link.target.session)
		s.link = nil
	}
	return left
}

// check leaves a leader that is no longer the one of the Lease.
func (s *standby) check(r *record) (uint64, bool) {
	if s.link == nil || r.holder == s.link.leader && r.epoch == s.link.epoch {
		return 0, false
	}
	session := s.link.target.session
	s.link = nil
	return session, true
}

func (s *standby) attached() bool { return s.link != nil && !s.link.promised.IsZero() }

func (s *standby) wake() (at time.Time) {
	if s.link != nil {
		at = s.link.silentAt()
	}
	if s.evidence != nil {
		at = earlier(at, s.evidence.ready)
	}
	return at
}

// earlier is the earlier of two instants, where zero is none.
func earlier(a, b time.Time) time.Time {
	if a.IsZero() || !b.IsZero() && b.Before(a) {
		return b
	}
	return a
}
