// A stand-in for Nomad's device plug-in of NVIDIA cards, for machines that have none: it says what a file says.
//
// Vendor, type, attributes and what a reservation hands over are as nomad-device-nvidia has them. Its configuration is
// `cards`, the path of a JSON file that is read again when it changes:
//
//	[{"name": "NVIDIA H100 80GB HBM3", "memory": 81559, "ids": ["GPU-1", "GPU-2"], "unhealthy": ["GPU-2"]}]
//
// To build it, in a checkout of Nomad's source, with this file as plugins/device/cmd/standin/main.go:
//
//	go build -o DIR/nomad-device-nvidia ./plugins/device/cmd/standin
//
// The tests find it by TEST_GPU_PLUGIN_DIR=DIR.
package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/nomad/plugins"
	"github.com/hashicorp/nomad/plugins/base"
	"github.com/hashicorp/nomad/plugins/device"
	"github.com/hashicorp/nomad/plugins/shared/hclspec"
	"github.com/hashicorp/nomad/plugins/shared/structs"
)

const (
	vendor = "nvidia"
	kind   = "gpu"
	period = 100 * time.Millisecond
)

type group struct {
	Name      string   `json:"name"`
	Memory    int64    `json:"memory"` // MiB
	IDs       []string `json:"ids"`
	Unhealthy []string `json:"unhealthy"`
}

type cards struct {
	path string
}

func (c *cards) PluginInfo() (*base.PluginInfoResponse, error) {
	return &base.PluginInfoResponse{
		Type:              base.PluginTypeDevice,
		PluginApiVersions: []string{device.ApiVersion010},
		PluginVersion:     "1.1.0",
		Name:              "nomad-device-nvidia",
	}, nil
}

func (c *cards) ConfigSchema() (*hclspec.Spec, error) {
	return hclspec.NewObject(map[string]*hclspec.Spec{"cards": hclspec.NewAttr("cards", "string", true)}), nil
}

func (c *cards) SetConfig(given *base.Config) error {
	var config struct {
		Cards string `codec:"cards"`
	}
	if len(given.PluginConfig) != 0 {
		if err := base.MsgPackDecode(given.PluginConfig, &config); err != nil {
			return err
		}
	}
	c.path = config.Cards
	return nil
}

func (c *cards) Fingerprint(ctx context.Context) (<-chan *device.FingerprintResponse, error) {
	out := make(chan *device.FingerprintResponse)
	go func() {
		defer close(out)
		var before []byte
		for {
			text, err := os.ReadFile(c.path)
			var found []group
			if err == nil && !bytes.Equal(text, before) {
				err = json.Unmarshal(text, &found)
			}
			if err != nil {
				out <- device.NewFingerprintError(err)
				return
			}
			if !bytes.Equal(text, before) {
				before = text
				out <- device.NewFingerprint(groups(found)...)
			}
			select {
			case <-ctx.Done():
				return
			case <-time.After(period):
			}
		}
	}()
	return out, nil
}

func groups(found []group) []*device.DeviceGroup {
	all := []*device.DeviceGroup{}
	for _, each := range found {
		devices := []*device.Device{}
		for _, id := range each.IDs {
			ill := slices.Contains(each.Unhealthy, id)
			words := ""
			if ill {
				words = "told to be unhealthy"
			}
			devices = append(devices, &device.Device{ID: id, Healthy: !ill, HealthDesc: words})
		}
		number := func(value int64, unit string) *structs.Attribute { return structs.NewIntAttribute(value, unit) }
		all = append(all, &device.DeviceGroup{
			Vendor: vendor, Type: kind, Name: each.Name, Devices: devices,
			Attributes: map[string]*structs.Attribute{
				"memory":           number(each.Memory, structs.UnitMiB),
				"bar1":             number(131072, structs.UnitMiB),
				"power":            number(700, structs.UnitW),
				"cores_clock":      number(1980, structs.UnitMHz),
				"memory_clock":     number(2619, structs.UnitMHz),
				"pci_bandwidth":    number(31992, structs.UnitMBPerS),
				"driver_version":   structs.NewStringAttribute("550.54.15"),
				"display_state":    structs.NewStringAttribute("Enabled"),
				"persistence_mode": structs.NewStringAttribute("Enabled"),
			},
		})
	}
	return all
}

func (c *cards) Reserve(ids []string) (*device.ContainerReservation, error) {
	if len(ids) == 0 {
		return nil, errors.New("no device ids given")
	}
	return &device.ContainerReservation{Envs: map[string]string{"NVIDIA_VISIBLE_DEVICES": strings.Join(ids, ",")}}, nil
}

func (c *cards) Stats(ctx context.Context, _ time.Duration) (<-chan *device.StatsResponse, error) {
	out := make(chan *device.StatsResponse)
	go func() {
		defer close(out)
		<-ctx.Done()
	}()
	return out, nil
}

func main() {
	plugins.Serve(func(hclog.Logger) any { return &cards{} })
}
