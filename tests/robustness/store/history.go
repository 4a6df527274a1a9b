package store

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/anishathalye/porcupine"

	"go.etcd.io/etcd/tests/v3/robustness/model"
	"go.etcd.io/etcd/tests/v3/robustness/report"
)

// History is what clients saw, and what the store persisted.
type History struct {
	Clients   []report.ClientReport
	Persisted []model.EtcdRequest
}

// Lost counts the writes that clients were told of and that were not persisted.
func (h History) Lost() (count int) {
	persisted := map[string]bool{}
	for _, request := range h.Persisted {
		persisted[content(request)] = true
	}
	for _, client := range h.Clients {
		for _, operation := range client.KeyValue {
			told := Acknowledged([]porcupine.Operation{operation}) == 1
			if told && !persisted[content(operation.Input)] {
				count++
			}
		}
	}
	return count
}

func content(request any) string {
	// These structures always marshal.
	text, _ := json.Marshal(request)
	return string(text)
}

// Compactions gives the compactions that starts brought with them as those of one more client:
// etcd's model knows only what clients ask for. What a client had asked for is not told again.
func Compactions(starts []Recovery, base time.Time, clients []report.ClientReport, client, stream int) report.ClientReport {
	told := report.ClientReport{ClientID: client}
	last := int64(0)
	for _, start := range starts {
		served := start.Served.Sub(base)
		asked := false
		for _, client := range clients {
			for _, operation := range client.KeyValue {
				request := operation.Input.(model.EtcdRequest)
				response := operation.Output.(model.MaybeEtcdResponse)
				if request.Type != model.Compact || operation.Call > served.Nanoseconds() {
					continue
				}
				done := response.Error == "" && response.ClientError == ""
				asked = asked || request.Compact.Revision == start.Compacted ||
					done && request.Compact.Revision > start.Compacted
			}
		}
		if asked || start.Compacted <= last {
			continue
		}
		last = start.Compacted
		told.KeyValue = append(told.KeyValue, porcupine.Operation{
			ClientId: stream,
			Input:    model.EtcdRequest{Type: model.Compact, Compact: &model.CompactRequest{Revision: start.Compacted}},
			Call:     start.Began.Sub(base).Nanoseconds(),
			Output: model.MaybeEtcdResponse{
				EtcdResponse: model.EtcdResponse{Compact: &model.CompactResponse{}, Revision: -1},
			},
			Return: served.Nanoseconds(),
		})
	}
	return told
}

const persistedName = "persisted.json"

// Save writes a history, the clients' part as etcd's report.LoadClientReports reads it.
func (h History) Save(dir string) error {
	for _, client := range h.Clients {
		path := filepath.Join(dir, fmt.Sprintf("client-%d", client.ClientID))
		if err := os.MkdirAll(path, 0o700); err != nil {
			return err
		}
		if err := save(filepath.Join(path, "operations.json"), client.KeyValue); err != nil {
			return err
		}
		if err := save(filepath.Join(path, "watch.json"), client.Watch); err != nil {
			return err
		}
	}
	return save(filepath.Join(dir, persistedName), h.Persisted)
}

func save[T any](path string, values []T) error {
	out, err := os.Create(path)
	if err != nil {
		return err
	}
	defer out.Close()
	encoder := json.NewEncoder(out)
	for _, value := range values {
		if err := encoder.Encode(value); err != nil {
			return err
		}
	}
	return out.Close()
}

// Load reads what Save wrote. With nothing persisted etcd's validator would pass over what it checks
// against it: that is an error here.
func Load(dir string) (History, error) {
	clients, err := report.LoadClientReports(dir)
	if err != nil {
		return History{}, err
	}
	in, err := os.Open(filepath.Join(dir, persistedName))
	if err != nil {
		return History{}, err
	}
	defer in.Close()
	history := History{Clients: clients}
	for decoder := json.NewDecoder(in); decoder.More(); {
		var request model.EtcdRequest
		if err := decoder.Decode(&request); err != nil {
			return History{}, err
		}
		history.Persisted = append(history.Persisted, request)
	}
	if len(history.Persisted) == 0 || len(clients) == 0 {
		return History{}, errors.New("an empty history proves nothing")
	}
	return history, nil
}
