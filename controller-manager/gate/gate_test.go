package gate

import (
	"context"
	"errors"
	"io"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"megacluster.io/controller-manager/leadership"
)

// leader is a leadership that a test gives and takes.
type leader struct {
	state atomic.Pointer[leadership.State]
}

func newLeader(s leadership.State) *leader {
	l := &leader{}
	l.state.Store(&s)
	return l
}

func (l *leader) State() leadership.State { return *l.state.Load() }

func (l *leader) MayAct() bool {
	s := l.State()
	return s.Leader && time.Now().Before(s.Fence)
}

func (l *leader) Wait(ctx context.Context, until func(leadership.State) bool) bool {
	for !until(l.State()) {
		if ctx.Err() != nil {
			return false
		}
		time.Sleep(time.Millisecond)
	}
	return true
}

func leading() leadership.State {
	return leadership.State{Leader: true, Holds: true, Fence: time.Now().Add(time.Hour)}
}

// server takes each request, says so, and answers once it is let.
type server struct{ came, answer chan struct{} }

func newServer() *server { return &server{make(chan struct{}, 16), make(chan struct{})} }

func (s *server) RoundTrip(*http.Request) (*http.Response, error) {
	s.came <- struct{}{}
	<-s.answer
	return &http.Response{StatusCode: http.StatusOK, Body: http.NoBody}, nil
}

func send(t *testing.T, g *Gate, s *server, method string) chan error {
	t.Helper()
	request, err := http.NewRequestWithContext(t.Context(), method, "http://localhost", io.NopCloser(strings.NewReader("{}")))
	if err != nil {
		t.Fatal(err)
	}
	sent := make(chan error, 1)
	go func() {
		response, err := transport{g, s}.RoundTrip(request)
		if err == nil {
			response.Body.Close()
		}
		sent <- err
	}()
	return sent
}

func TestAStandbyReadsAndDoesNotWrite(t *testing.T) {
	s := newServer()
	close(s.answer)
	g := New(newLeader(leadership.State{}))
	if err := <-send(t, g, s, http.MethodGet); err != nil {
		t.Fatal(err)
	}
	<-s.came
	for _, method := range []string{http.MethodPost, http.MethodPut, http.MethodPatch, http.MethodDelete} {
		if err := <-send(t, g, s, method); !errors.Is(err, ErrNotLeading) {
			t.Errorf("%s: %v", method, err)
		}
	}
	if len(s.came) != 0 {
		t.Fatal("a write was sent")
	}
}

func TestAWriteWaitsWhileTheRightToActIsSuspended(t *testing.T) {
	for name, suspended := range map[string]leadership.State{
		"not renewed": {Holds: true},
		"past the fence, which nobody has noticed yet": {Leader: true, Holds: true, Fence: time.Now()},
	} {
		s, l := newServer(), newLeader(suspended)
		close(s.answer)
		sent := send(t, New(l), s, http.MethodPost)
		select {
		case err := <-sent:
			t.Fatalf("%s: it did not wait: %v", name, err)
		case <-time.After(50 * time.Millisecond):
		}
		now := leading()
		l.state.Store(&now)
		if err := <-sent; err != nil {
			t.Fatalf("%s: %v", name, err)
		}
	}
}

func TestAWriteThatWaitsFailsWhenLeadershipIsLost(t *testing.T) {
	s, l := newServer(), newLeader(leadership.State{Holds: true})
	sent := send(t, New(l), s, http.MethodPost)
	l.state.Store(&leadership.State{})
	if err := <-sent; !errors.Is(err, ErrNotLeading) {
		t.Fatal(err)
	}
	if len(s.came) != 0 {
		t.Fatal("it was sent")
	}
}

func TestCloseWaitsForWritesUnderWayAndRefusesOthers(t *testing.T) {
	s := newServer()
	g := New(newLeader(leading()))
	sent := send(t, g, s, http.MethodPost)
	<-s.came
	short, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	g.Close(short)
	if short.Err() == nil {
		t.Fatal("it did not wait")
	}
	if err := <-send(t, g, s, http.MethodPost); !errors.Is(err, ErrNotLeading) {
		t.Fatal(err)
	}
	close(s.answer)
	if err := <-sent; err != nil {
		t.Fatal(err)
	}
	g.Close(t.Context())
}
