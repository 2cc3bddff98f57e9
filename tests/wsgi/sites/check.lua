-- Load for `wrk`, which has one connection in each of its threads: every answer has to be that to
-- the request before it. Each thread says so when it has had as many answers as its first argument,
-- and goes on: one that stopped would leave a connection open, and a sync worker waiting for it.

local threads = {}

function setup(thread)
    thread:set("id", #threads)
    table.insert(threads, thread)
end

function init(args)
    wanted = tonumber(args[1])
    asked, answered, right, wrong = 0, 0, 0, ""
end

function request()
    asked = asked + 1
    word = string.format("t%dn%d", id, asked)
    return wrk.format("GET", "/echo/" .. word)
end

function response(status, headers, body)
    if status == 200 and body == "you said " .. word .. " and no more" then
        right = right + 1
    else
        wrong = string.format("%d to %s: %s", status, word, body)
    end
    answered = answered + 1
    if answered == wanted then
        print("ENOUGH")
        io.flush()
    end
end

function done(summary, latency, requests)
    local total = 0
    for _, thread in ipairs(threads) do
        total = total + thread:get("right")
        if thread:get("wrong") ~= "" then
            print("WRONG " .. thread:get("wrong"))
        end
    end
    local errors = summary.errors
    print(string.format("RIGHT %d CONNECT %d READ %d WRITE %d STATUS %d TIMEOUT %d", total,
        errors.connect, errors.read, errors.write, errors.status, errors.timeout))
end
