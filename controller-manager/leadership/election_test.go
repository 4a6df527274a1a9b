package leadership

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	coordinationclient "k8s.io/client-go/kubernetes/typed/coordination/v1"
)

// server is an apiserver's compare-and-swap on one Lease.
type server struct {
	coordinationclient.LeaseInterface
	mutex   sync.Mutex
	lease   *coordinationv1.Lease
	version int
}

var resource = schema.GroupResource{Group: "coordination.k8s.io", Resource: "leases"}

func (s *server) Leases(string) coordinationclient.LeaseInterface { return s }

func (s *server) Get(_ context.Context, name string, _ metav1.GetOptions) (*coordinationv1.Lease, error) {
	s.mutex.Lock()
	defer s.mutex.Unlock()
	if s.lease == nil {
		return nil, apierrors.NewNotFound(resource, name)
	}
	return s.lease.DeepCopy(), nil
}

func (s *server) Create(_ context.Context, lease *coordinationv1.Lease, _ metav1.CreateOptions) (*coordinationv1.Lease, error) {
	s.mutex.Lock()
	defer s.mutex.Unlock()
	if s.lease != nil {
		return nil, apierrors.NewAlreadyExists(resource, lease.Name)
	}
	return s.store(lease), nil
}

func (s *server) Update(_ context.Context, lease *coordinationv1.Lease, _ metav1.UpdateOptions) (*coordinationv1.Lease, error) {
	s.mutex.Lock()
	defer s.mutex.Unlock()
	if s.lease == nil || s.lease.ResourceVersion != lease.ResourceVersion {
		return nil, apierrors.NewConflict(resource, lease.Name, fmt.Errorf("another version"))
	}
	return s.store(lease), nil
}

func (s *server) store(lease *coordinationv1.Lease) *coordinationv1.Lease {
	s.version++
	s.lease = lease.DeepCopy()
	s.lease.ResourceVersion = fmt.Sprint(s.version)
	return s.lease.DeepCopy()
}

func settings(identity string) Config {
	return Config{
		Namespace: "ns", Name: "lease", Identity: identity, Listen: "127.0.0.1:0", Server: "https://127.0.0.1:1",
		LeaseDuration: 5 * time.Second, RenewDeadline: 3 * time.Second, RetryPeriod: time.Second,
	}
}

func TestTimesThatGuaranteeNothingAreRefused(t *testing.T) {
	for name, change := range map[string]func(*Config){
		"lease as long as the deadline": func(c *Config) { c.LeaseDuration = c.RenewDeadline },
		"half a second":                 func(c *Config) { c.LeaseDuration += time.Second / 2 },
		"no time to renew":              func(c *Config) { c.RenewDeadline = c.RetryPeriod },
		"no pause":                      func(c *Config) { c.RetryPeriod = 0 },
	} {
		config := settings("a")
		change(&config)
		if _, err := New(&server{}, config); err == nil {
			t.Errorf("%s: taken", name)
		}
	}
}

// simulated drives two cores with one clock and messages that arrive at once.
type simulated struct {
	t        *testing.T
	server   server
	now      time.Time
	leader   *election
	standby  *election
	cut      bool
	sessions map[uint64]bool
}

func simulate(t *testing.T) *simulated {
	s := &simulated{t: t, now: time.Now(), sessions: map[uint64]bool{}}
	s.leader = newElection(settings("a"), &peer{"a:1", "k"}, 0, s.now)
	s.standby = newElection(settings("b"), &peer{"b:1", "k"}, 1<<16, s.now)
	s.standby.synced = true
	s.look(s.leader)
	s.pass(8 * time.Second)
	return s
}

func (s *simulated) look(e *election) {
	next := e.renewal(s.now, s.now)
	if next == nil {
		found, _ := s.server.Get(context.Background(), "lease", metav1.GetOptions{})
		next = e.looked(found, s.now, s.now)
	}
	if next == nil {
		return
	}
	written, err := s.server.Update(context.Background(), next, metav1.UpdateOptions{})
	if next.ResourceVersion == "" {
		written, err = s.server.Create(context.Background(), next, metav1.CreateOptions{})
	}
	if err != nil {
		e.failed(true, s.now)
		return
	}
	e.wrote(written, s.now, s.now)
}

// pass lets time go by, in small steps.
func (s *simulated) pass(long time.Duration) {
	for end := s.now.Add(long); s.now.Before(end); s.now = s.now.Add(10 * time.Millisecond) {
		for _, e := range []*election{s.leader, s.standby} {
			if e == nil {
				continue
			}
			e.passed(s.now)
			if !s.now.Before(e.nextLook) {
				s.look(e)
			}
		}
		s.deliver()
		if s.leader != nil && s.leader.state(s.now).Leader && s.standby.state(s.now).Leader {
			s.t.Fatalf("two act at %s", s.now)
		}
	}
}

func (s *simulated) deliver() {
	if s.leader == nil || s.cut {
		s.standby.effects = nil
		return
	}
	for len(s.standby.effects)+len(s.leader.effects) > 0 {
		effects := s.standby.effects
		s.standby.effects = nil
		for _, effect := range effects {
			switch {
			case effect.connect != nil:
				s.sessions[effect.connect.session] = true
				s.leader.told(effect.connect.session, fmt.Sprintf("hello k b %x\n", effect.connect.session))
			case effect.answer != 0:
				s.leader.told(effect.answer, effect.line)
			}
		}
		effects = s.leader.effects
		s.leader.effects = nil
		for _, effect := range effects {
			if effect.say != 0 {
				s.standby.heard(effect.say, effect.line, s.now)
			}
		}
	}
}

func TestTheLeaseNamesASyncedStandby(t *testing.T) {
	s := simulate(t)
	if state := s.leader.state(s.now); !state.Leader || !state.StandbySynced {
		t.Fatalf("%+v", state)
	}
	note := s.server.lease.Annotations[AnnotationStandby]
	if !strings.HasPrefix(note, "b ") || !strings.HasSuffix(note, " synced") {
		t.Fatalf("%q", note)
	}
	if _, settles := s.server.lease.Annotations[AnnotationSettling]; settles {
		t.Fatal("it still settles")
	}
}

func TestASilentLeaderIsFencedBeforeTheStandbyActs(t *testing.T) {
	s := simulate(t)
	epoch, since := s.leader.state(s.now).Epoch, s.now
	old := s.leader
	s.leader = nil // Stopped: it neither asks nor renews.
	for !s.standby.state(s.now).Leader {
		s.pass(10 * time.Millisecond)
		if s.now.Sub(since) > 2*time.Second {
			t.Fatal("no takeover within 2 s")
		}
	}
	if old.state(s.now).Leader {
		t.Fatal("the old leader may act when it wakes")
	}
	if s.standby.state(s.now).Epoch <= epoch || s.standby.takeover.Cause != Silence {
		t.Fatalf("%+v %+v", s.standby.state(s.now), s.standby.takeover)
	}
}

func TestACutBetweenThemLeavesTheLeader(t *testing.T) {
	s := simulate(t)
	s.cut = true
	s.pass(20 * time.Second)
	if !s.leader.state(s.now).Leader || s.standby.state(s.now).Leader {
		t.Fatal("the leader changed")
	}
}

func TestADeadLeaderIsFollowedAtOnce(t *testing.T) {
	s := simulate(t)
	s.leader = nil
	for session := range s.sessions {
		s.standby.disconnected(session, endClosed, s.now)
	}
	s.pass(100 * time.Millisecond)
	if !s.standby.state(s.now).Leader || s.standby.takeover.Cause != Death {
		t.Fatalf("%+v", s.standby.state(s.now))
	}
}

func TestAStandbyTakesWhatIsLeftToItInOneWrite(t *testing.T) {
	s := simulate(t)
	s.pass(500 * time.Millisecond)
	epoch, version := s.leader.state(s.now).Epoch, s.server.version
	if _, told := s.leader.stop(); !told {
		t.Fatal("nobody was told")
	}
	if s.leader.state(s.now).Leader {
		t.Fatal("it still leads")
	}
	s.deliver()
	s.leader.nextLook = s.now.Add(time.Hour)
	s.standby.passed(s.now)
	next := s.standby.renewal(s.now, s.now)
	if next == nil {
		t.Fatal("it looks first")
	}
	s.look(s.standby)
	state := s.standby.state(s.now)
	if !state.Leader || state.Epoch <= epoch || s.standby.takeover.Cause != Handover || s.server.version != version+1 {
		t.Fatalf("%+v %+v, version %d after %d", state, s.standby.takeover, s.server.version, version)
	}
	// Giving back what is taken changes nothing.
	lease := s.leader.release(s.now)
	if _, err := s.server.Update(context.Background(), lease, metav1.UpdateOptions{}); !apierrors.IsConflict(err) {
		t.Fatal("the old leader has written")
	}
	if s.leader.releaseAgain(s.server.lease, s.now) != nil {
		t.Fatal("it gives back another's")
	}
}

func TestALeaseThatMovedOnIsLookedAt(t *testing.T) {
	s := simulate(t)
	s.pass(500 * time.Millisecond)
	s.server.store(s.server.lease) // A user's edit.
	s.leader.stop()
	s.leader.nextLook = s.now.Add(time.Hour)
	s.pass(300 * time.Millisecond)
	if !s.standby.state(s.now).Leader || s.standby.takeover.Cause != Handover {
		t.Fatalf("%+v %+v", s.standby.state(s.now), s.standby.takeover)
	}
}

func TestAHandoverOverRealConnections(t *testing.T) {
	api := &server{}
	start := func(identity string) (*Elector, context.CancelFunc) {
		e, err := New(api, settings(identity))
		if err != nil {
			t.Fatal(err)
		}
		e.SetSynced(true)
		ctx, cancel := context.WithCancel(t.Context())
		go e.Run(ctx)
		return e, cancel
	}
	limit, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	first, stop := start("a")
	if !first.Wait(limit, func(s State) bool { return s.Leader }) {
		t.Fatal("nobody leads")
	}
	second, stopSecond := start("b")
	defer stopSecond()
	if !first.Wait(limit, func(s State) bool { return s.StandbySynced }) {
		t.Fatal("no standby")
	}
	stop()
	if !second.Wait(limit, func(s State) bool { return s.Leader }) {
		t.Fatal("no handover")
	}
	if first.MayAct() || second.State().Epoch <= first.State().Epoch {
		t.Fatalf("%+v %+v", first.State(), second.State())
	}
}
