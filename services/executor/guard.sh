#!/bin/sh
# Sets the packet filter rules around the task network; runs as root with NET_ADMIN in the host's network.
# BRIDGE: the task network's interface. CHAIN: prefix of our own chains. ALLOW, DENY, CONTROL: networks, by spaces.
# Each chain is replaced in one step, so setting the same rules again never leaves a gap.

for tool in iptables-nft iptables-legacy iptables; do
    if command -v "$tool" >/dev/null && "$tool" -w 10 -n -L DOCKER-USER >/dev/null 2>&1; then
        filter=$tool
        break
    fi
done
if [ -z "${filter:-}" ]; then
    echo "no packet filter has the engine's DOCKER-USER chain: is its iptables support switched off?" >&2
    exit 1
fi

# The engine's name service asks these from inside the task's network namespace.
resolvers=$(awk '$1 == "nameserver" && $2 !~ /:/ && $2 !~ /^127\./ { print $2 }' /etc/resolv.conf)

{
    echo "*filter"
    # What a task sends to the host itself, at whichever of its addresses.
    echo ":$CHAIN-IN - [0:0]"
    # What a task sends through the host to anywhere else.
    echo ":$CHAIN-FW - [0:0]"
    for network in $ALLOW; do
        echo "-A $CHAIN-IN -d $network -j ACCEPT"
        echo "-A $CHAIN-FW -d $network -j ACCEPT"
    done
    for resolver in $resolvers; do
        for protocol in udp tcp; do
            echo "-A $CHAIN-IN -d $resolver -p $protocol --dport 53 -j ACCEPT"
            echo "-A $CHAIN-FW -d $resolver -p $protocol --dport 53 -j RETURN"
        done
    done
    # A published port of any container, reached through any address of the host.
    echo "-A $CHAIN-FW -m conntrack --ctstate DNAT -j REJECT"
    for network in 169.254.0.0/16 $CONTROL $DENY; do
        echo "-A $CHAIN-FW -d $network -j REJECT"
    done
    echo "-A $CHAIN-IN -j REJECT"
    echo "COMMIT"
} | "$filter-restore" -w 10 --noflush

"$filter" -w 10 -C INPUT -i "$BRIDGE" -j "$CHAIN-IN" 2>/dev/null ||
    "$filter" -w 10 -I INPUT 1 -i "$BRIDGE" -j "$CHAIN-IN"
"$filter" -w 10 -C DOCKER-USER -i "$BRIDGE" -j "$CHAIN-FW" 2>/dev/null ||
    "$filter" -w 10 -I DOCKER-USER 1 -i "$BRIDGE" -j "$CHAIN-FW"
echo "rules set with $filter"
