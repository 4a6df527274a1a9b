package leadership

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/url"
	"sync"
	"sync/atomic"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	coordinationclient "k8s.io/client-go/kubernetes/typed/coordination/v1"
	"k8s.io/klog/v2"
)

const (
	helloTime   = 2 * time.Second
	sendTime    = 2 * time.Second
	releaseTime = 2 * time.Second
	// A standby to which the Lease was left has this long to take it.
	yieldTime   = time.Second
	linesQueued = 32
	eventQueue  = 256
	longestLine = 512
)

// Config says where the Lease is, who we are and how patient everybody is.
type Config struct {
	Namespace, Name, Identity string
	// LeaseDuration is in whole seconds, the same for all candidates, longer than RenewDeadline.
	LeaseDuration, RenewDeadline, RetryPeriod time.Duration
	// Listen is where standbys connect, such as ":10258"; port 0 for any.
	Listen string
	// Server is the apiserver's URL: the address by which it sees us is the one standbys connect to.
	Server string
	// OnTakeover is told of each leadership that this process begins; it must not block.
	OnTakeover func(Takeover)
}

func (c Config) validate() error {
	switch {
	case c.LeaseDuration < time.Second || c.LeaseDuration%time.Second != 0:
		return fmt.Errorf("a lease duration of %s: whole seconds are needed", c.LeaseDuration)
	case c.RetryPeriod <= 0 || c.RenewDeadline < 2*c.RetryPeriod:
		return fmt.Errorf("a renew deadline of %s: at least two retry periods (%s) are needed", c.RenewDeadline, c.RetryPeriod)
	case c.LeaseDuration <= c.RenewDeadline+c.RenewDeadline/8:
		return fmt.Errorf("a lease duration of %s: more than 9/8 of the renew deadline (%s) are needed", c.LeaseDuration, c.RenewDeadline)
	}
	return nil
}

// Elector is a candidate for one Lease.
type Elector struct {
	core        *election
	client      coordinationclient.LeaseInterface
	listener    net.Listener
	events      chan func(*election, time.Time)
	standbys    map[uint64]chan string
	leaders     map[uint64]leaderLink
	connections uint64
	state       atomic.Pointer[State]
	synced      atomic.Bool
	changed     sync.Cond
	done        chan struct{}
}

type leaderLink struct {
	lines chan string
	leave context.CancelFunc
}

// New makes a candidate. It listens at once: a restarted process knows by its port that its
// earlier life is over.
func New(client coordinationclient.LeasesGetter, config Config) (*Elector, error) {
	if err := config.validate(); err != nil {
		return nil, err
	}
	e := &Elector{
		client:   client.Leases(config.Namespace),
		events:   make(chan func(*election, time.Time), eventQueue),
		standbys: map[uint64]chan string{},
		leaders:  map[uint64]leaderLink{},
		done:     make(chan struct{}),
	}
	e.changed.L = &sync.Mutex{}
	e.state.Store(&State{})
	listener, err := net.Listen("tcp", config.Listen)
	if err != nil {
		return nil, fmt.Errorf("listening for standbys: %w", err)
	}
	e.listener = listener
	address, err := advertised(config.Server, listener)
	if err != nil {
		return nil, fmt.Errorf("the address for standbys: %w", err)
	}
	at := &peer{address, fmt.Sprintf("%016x%016x", rand.Uint64(), rand.Uint64())}
	e.core = newElection(config, at, rand.Uint64()<<16, time.Now())
	return e, nil
}

// advertised is the address from which this host would reach the server. Nothing is sent.
func advertised(server string, listener net.Listener) (string, error) {
	_, port, err := net.SplitHostPort(listener.Addr().String())
	if err != nil {
		return "", err
	}
	if at, ok := listener.Addr().(*net.TCPAddr); ok && !at.IP.IsUnspecified() {
		return at.String(), nil
	}
	to, err := url.Parse(server)
	if err != nil {
		return "", err
	}
	host := to.Host
	if to.Port() == "" {
		host = net.JoinHostPort(to.Hostname(), "443")
	}
	probe, err := net.DialTimeout("udp", host, helloTime)
	if err != nil {
		return "", err
	}
	defer probe.Close()
	own, _, err := net.SplitHostPort(probe.LocalAddr().String())
	return net.JoinHostPort(own, port), err
}

// SetSynced says whether this process holds all that it needs to lead.
func (e *Elector) SetSynced(synced bool) { e.synced.Store(synced) }

// Synced is what was said last.
func (e *Elector) Synced() bool { return e.synced.Load() }

// LeadAlone leads without a Lease, for a process that knows that it is the only one.
func (e *Elector) LeadAlone() {
	e.state.Store(&State{Leader: true, Holds: true, Fence: time.Now().AddDate(100, 0, 0)})
}

// Renewed is when the request began that last renewed our leadership; zero where we don't lead.
func (e *Elector) Renewed() time.Time { return e.state.Load().Renewed }

// State is what is known now.
func (e *Elector) State() State { return *e.state.Load() }

// MayAct says whether we lead and the fence has not passed: asked right before each act.
func (e *Elector) MayAct() bool {
	s := e.state.Load()
	return s.Leader && time.Now().Before(s.Fence)
}

// Wait waits until the condition holds; false when ctx or the election ended before.
func (e *Elector) Wait(ctx context.Context, until func(State) bool) bool {
	stop := context.AfterFunc(ctx, func() {
		e.changed.L.Lock()
		defer e.changed.L.Unlock()
		e.changed.Broadcast()
	})
	defer stop()
	e.changed.L.Lock()
	defer e.changed.L.Unlock()
	for {
		switch {
		case ctx.Err() != nil:
			return false
		case until(e.State()):
			return true
		}
		select {
		case <-e.done:
			return false
		default:
		}
		e.changed.Wait()
	}
}

// Run takes part until ctx is done, then gives the Lease back.
func (e *Elector) Run(ctx context.Context) {
	defer e.listener.Close()
	go e.accept()
	var answered chan func(*election, time.Time)
	timer := time.NewTimer(0)
	defer timer.Stop()
	for ctx.Err() == nil {
		now := time.Now()
		e.core.synced = e.synced.Load()
		e.core.passed(now)
		if answered == nil && !now.Before(e.core.nextLook) {
			answered = e.begin(now)
		}
		e.apply()
		e.publish()
		wake := e.core.wake(now)
		if answered == nil {
			wake = earlier(wake, e.core.nextLook)
		}
		timer.Reset(time.Until(wake))
		select {
		case <-ctx.Done():
		case event := <-e.events:
			event(e.core, time.Now())
		case answer := <-answered:
			answered = nil
			answer(e.core, time.Now())
			// A look may have led to a write, which follows at once.
			if next := e.core.next; next != nil {
				e.core.next = nil
				answered = e.send(next)
			}
		case <-timer.C:
		}
	}
	e.yield()
	e.release()
	e.core.released()
	e.apply()
	// The last lines go out before the process ends.
	time.Sleep(20 * time.Millisecond)
	close(e.done)
	e.changed.L.Lock()
	e.changed.Broadcast()
	e.changed.L.Unlock()
}

func (e *Elector) publish() {
	if t := e.core.takeover; t != nil {
		e.core.takeover = nil
		klog.InfoS("Took the Lease", "lease", e.core.config.Name, "epoch", t.Epoch, "cause", t.Cause, "took", t.Took)
		if e.core.config.OnTakeover != nil {
			e.core.config.OnTakeover(*t)
		}
	}
	now := e.core.state(time.Now())
	before := e.state.Swap(&now)
	if before.Leader != now.Leader || before.Holder != now.Holder || before.StandbySynced != now.StandbySynced {
		klog.InfoS("Leadership", "lease", e.core.config.Name, "leader", now.Leader, "holder", now.Holder,
			"epoch", now.Epoch, "standbySynced", now.StandbySynced)
	}
	if *before != now {
		e.changed.L.Lock()
		e.changed.Broadcast()
		e.changed.L.Unlock()
	}
}

// begin starts the next call of the apiserver: a renewal without a look where the record is known.
func (e *Elector) begin(now time.Time) chan func(*election, time.Time) {
	if lease := e.core.renewal(now, time.Now()); lease != nil {
		return e.send(lease)
	}
	return e.call(func(ctx context.Context) func(*election, time.Time) {
		lease, err := e.client.Get(ctx, e.core.config.Name, metav1.GetOptions{})
		if apierrors.IsNotFound(err) {
			lease, err = nil, nil
		}
		return func(core *election, now time.Time) {
			if err != nil {
				klog.ErrorS(err, "Leader election")
				core.failed(false, now)
				return
			}
			core.next = core.looked(lease, now, time.Now())
		}
	})
}

func (e *Elector) send(lease *coordinationv1.Lease) chan func(*election, time.Time) {
	started := time.Now()
	return e.call(func(ctx context.Context) func(*election, time.Time) {
		written, err := e.write(ctx, lease)
		return func(core *election, now time.Time) {
			switch {
			case err == nil:
				core.wrote(written, started, now)
			case apierrors.IsConflict(err) || apierrors.IsAlreadyExists(err) || apierrors.IsNotFound(err):
				core.failed(true, now)
			default:
				klog.ErrorS(err, "Leader election")
				core.failed(false, now)
			}
		}
	})
}

func (e *Elector) write(ctx context.Context, lease *coordinationv1.Lease) (*coordinationv1.Lease, error) {
	if lease.ResourceVersion == "" {
		return e.client.Create(ctx, lease, metav1.CreateOptions{})
	}
	return e.client.Update(ctx, lease, metav1.UpdateOptions{})
}

func (e *Elector) call(run func(context.Context) func(*election, time.Time)) chan func(*election, time.Time) {
	answered := make(chan func(*election, time.Time), 1)
	limit := e.core.config.RenewDeadline * 2 / 3
	go func() {
		ctx, cancel := context.WithTimeout(context.Background(), limit)
		defer cancel()
		answered <- run(ctx)
	}()
	return answered
}

// yield stops leading and leaves the Lease to the standby, if there is one.
func (e *Elector) yield() {
	connection, told := e.core.stop()
	// Whoever acts on our leadership stops before others can know that the Lease is free.
	e.publish()
	e.apply()
	late := time.After(yieldTime)
	for told {
		select {
		case event := <-e.events:
			event(e.core, time.Now())
			_, told = e.core.peers.sessions[connection]
		case <-late:
			return
		}
	}
}

// release gives the Lease back, unless it has been taken.
func (e *Elector) release() {
	lease := e.core.release(time.Now())
	if lease == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), releaseTime)
	defer cancel()
	_, err := e.write(ctx, lease)
	if apierrors.IsConflict(err) {
		// A renewal that was cut short may have landed all the same.
		var found *coordinationv1.Lease
		if found, err = e.client.Get(ctx, lease.Name, metav1.GetOptions{}); err == nil {
			if lease = e.core.releaseAgain(found, time.Now()); lease == nil {
				return
			}
			_, err = e.write(ctx, lease)
		}
	}
	if err != nil {
		klog.ErrorS(err, "Leadership was not released")
		return
	}
	klog.InfoS("Leadership released")
}

func (e *Elector) apply() {
	effects := e.core.effects
	e.core.effects = nil
	for _, effect := range effects {
		switch {
		case effect.connect != nil:
			e.dial(*effect.connect)
		case effect.answer != 0:
			if to, there := e.leaders[effect.answer]; there {
				offer(to.lines, effect.line)
			}
		case effect.say != 0:
			if to, there := e.standbys[effect.say]; there {
				offer(to, effect.line)
			}
		case effect.close != 0:
			if lines, there := e.standbys[effect.close]; there {
				close(lines)
				delete(e.standbys, effect.close)
			}
		default:
			if to, there := e.leaders[effect.leave]; there {
				to.leave()
				delete(e.leaders, effect.leave)
			}
		}
	}
}

// offer queues a line; where the queue is full it is lost, as in the network.
func offer(lines chan string, line string) {
	select {
	case lines <- line:
	default:
	}
}

func (e *Elector) accept() {
	for {
		conn, err := e.listener.Accept()
		if err != nil {
			if errors.Is(err, net.ErrClosed) {
				return
			}
			time.Sleep(100 * time.Millisecond)
			continue
		}
		e.events <- func(*election, time.Time) { e.serve(conn) }
	}
}

// serve talks with a standby. The connection is kept open, also when nothing can be sent: only the
// election ends it, since an end without a word stands for our death.
func (e *Elector) serve(conn net.Conn) {
	e.connections++
	id, lines := e.connections, make(chan string, linesQueued)
	e.standbys[id] = lines
	go func() {
		reader := bufio.NewReaderSize(conn, longestLine)
		_ = conn.SetReadDeadline(time.Now().Add(helloTime))
		for {
			line, err := readLine(reader)
			if err != nil {
				break
			}
			_ = conn.SetReadDeadline(time.Time{})
			e.events <- func(core *election, _ time.Time) { core.told(id, line) }
		}
		e.events <- func(core *election, _ time.Time) {
			core.gone(id)
			if lines, there := e.standbys[id]; there {
				close(lines)
				delete(e.standbys, id)
			}
		}
	}()
	go func() {
		defer conn.Close()
		broken := false
		for line := range lines {
			if !broken {
				_ = conn.SetWriteDeadline(time.Now().Add(sendTime))
				_, err := io.WriteString(conn, line)
				broken = err != nil
			}
		}
	}()
}

func (e *Elector) dial(to target) {
	ctx, leave := context.WithCancel(context.Background())
	lines := make(chan string, linesQueued)
	e.leaders[to.session] = leaderLink{lines, leave}
	go func() {
		defer leave()
		how := e.converse(ctx, to, lines)
		e.events <- func(core *election, now time.Time) {
			core.disconnected(to.session, how, now)
			delete(e.leaders, to.session)
		}
	}()
}

// converse talks with the leader until the connection ends.
func (e *Elector) converse(ctx context.Context, to target, lines chan string) end {
	dialer := net.Dialer{Timeout: helloTime}
	conn, err := dialer.DialContext(ctx, "tcp", to.peer.address)
	if err != nil {
		return endBroken
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	_ = conn.SetWriteDeadline(time.Now().Add(sendTime))
	if _, err := fmt.Fprintf(conn, "hello %s %s %016x\n", to.peer.key, e.core.config.Identity, to.session); err != nil {
		return endBroken
	}
	go func() {
		for {
			select {
			case <-ctx.Done():
				return
			case line := <-lines:
				_ = conn.SetWriteDeadline(time.Now().Add(sendTime))
				if _, err := io.WriteString(conn, line); err != nil {
					// The reader still hears what the leader said before.
					return
				}
			}
		}
	}()
	reader := bufio.NewReaderSize(conn, longestLine)
	for {
		line, err := readLine(reader)
		switch {
		case err == nil:
			e.events <- func(core *election, now time.Time) { core.heard(to.session, line, now) }
		case ctx.Err() != nil:
			return endTold
		case errors.Is(err, io.EOF):
			return endClosed
		default:
			return endBroken
		}
	}
}

func readLine(reader *bufio.Reader) (string, error) {
	line, err := reader.ReadSlice('\n')
	return string(line), err
}
